"""A result of caption scoring in lines to read."""

from typing import Any

FACTS = ("class_precision", "class_recall", "count_precision", "count_recall")


def caption_summary(result: dict[str, Any]) -> str:
    """The metrics of all captions and of each style, the facts, what stands out among the texts, what is missing."""
    groups = {"all": result["metrics"]} | {style: found["metrics"] for style, found in result["by_style"].items()}
    lines = [f"{'':34}" + "".join(f"{name:>16}" for name in groups)]
    lines += [
        f"{metric:34}" + "".join(f"{values[metric]:16.4f}" for values in groups.values()) for metric in groups["all"]
    ]
    if result.get("differing"):
        lines.append(f"{result['differing']} images and styles had unequal predictions; the first one was scored")
    lines += _statistics(result["statistics"])
    if result["facts"]:
        lines += _facts(result["facts"])
    lines += [f"not computed: {name}: {reason}" for name, reason in result["not_computed"].items()]
    return "\n".join(lines)


def _statistics(statistics: dict[str, Any]) -> list[str]:
    lines = []
    for what in ("predictions", "references"):
        if found := statistics[what]:
            words = found["words"]
            lines.append(
                f"{what}: {words['mean']:.1f} words in the mean, {words['median']:g} in the median, 95% have at most "
                f"{words['p95']:g}; {found['loops']:.1%} loop, {found['unfinished']:.1%} end in mid-sentence, "
                f"{found['distinct']['2'] or 0:.1%} of their word pairs are different ones"
            )
    lines.append(
        f"{statistics['captions']} captions of an image and style: {statistics['missing']} missing, "
        f"{statistics['empty']} empty, {statistics['different']} different texts"
    )
    if most := statistics["most_frequent"]:
        lines[-1] += f"; {most['share']:.1%} say: {most['text'].encode('ascii', 'backslashreplace').decode()}"
    return lines


def _facts(facts: dict[str, Any]) -> list[str]:
    lines = [f"facts of {facts['captions']} captions of images with boxes, {facts['without_fact']} state none"]
    for name in FACTS:
        found = facts[name]
        if found["n"]:
            interval = f"{found['low']:.4f} - {found['high']:.4f}"
            lines.append(f"{name:34}{found['n']:10}{'':10}{found['value']:10.4f}{interval:>20}")
    lines.append(
        f"{facts['hallucinated']} classes hallucinated, {facts['missed']} missed; "
        f"{facts['wrong_numbers']} numbers wrong of classes that are there"
    )
    return lines

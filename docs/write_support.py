"""Write the table of families and ways to tune into docs/support.md, from the results of their tests.

    make support

runs tests/test_matrix.py whole and calls this with the results that pytest wrote.
"""

import argparse
import re
import xml.etree.ElementTree as ET
from pathlib import Path

from sarlang_sft.backbones import BACKBONES
from sarlang_sft.tuning import TUNINGS

PLACES = ("CPU tiny", "H200 full size")
PAGE = Path(__file__).parent / "support.md"
BEGIN, END = "<!-- matrix: written by docs/write_support.py -->", "<!-- end of matrix -->"


def read_results(path: Path) -> dict[tuple[str, str], str]:
    """What became of every (family, way): `passed`, `failed` or `skipped`."""
    results = {}
    for case in ET.parse(path).iter("testcase"):
        if match := re.fullmatch(r"test_family_and_way\[(\w+)-(\w+)\]", case.get("name")):
            kinds = {child.tag for child in case}
            results[match[1], match[2]] = (
                "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
            )
    return results


def table(runs: dict[str, dict[tuple[str, str], str]]) -> str:
    """One row per way, one column per family, and where the whole row passed.

    Args:
        runs: Results by where they were run.
    """
    lines = [f"| `tuning` | {' | '.join(f'`{family}`' for family in BACKBONES)} | run on |"]
    lines.append("| --- |" + " --- |" * (len(BACKBONES) + 1))
    for way in TUNINGS:
        cells = []
        for family in BACKBONES:
            found = [results[family, way] for results in runs.values() if (family, way) in results]
            cells.append("failed" if "failed" in found else "passed" if "passed" in found else "not run")
        everywhere = {
            place: all(results.get((family, way)) == "passed" for family in BACKBONES)
            for place, results in runs.items()
        }
        run_on = [place if passed else f"{place}: not all" for place, passed in everywhere.items()]
        run_on += [f"{place}: not run" for place in PLACES if place not in runs]
        lines.append(f"| `{way}` | {' | '.join(cells)} | {'; '.join(run_on)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", help=f"PLACE=FILE, a JUnit XML file; places are {', '.join(PLACES)}")
    args = parser.parse_args()
    runs = {place: read_results(Path(path)) for place, path in (word.split("=", 1) for word in args.results)}
    if unknown := runs.keys() - set(PLACES):
        parser.error(f"unknown place `{min(unknown)}`; places are {', '.join(PLACES)}")
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table(runs)}\n{END}{after}", encoding="utf-8")
    print(f"Written: {PAGE}")


if __name__ == "__main__":
    main()

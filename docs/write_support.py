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


def table(results: dict[tuple[str, str], str]) -> str:
    """One row per way, one column per family, and where the row was run."""
    lines = [f"| `tuning` | {' | '.join(f'`{family}`' for family in BACKBONES)} | run on |"]
    lines.append("| --- |" + " --- |" * (len(BACKBONES) + 1))
    for way in TUNINGS:
        cells = [results.get((family, way), "not run") for family in BACKBONES]
        run_on = "CPU, tiny; full size not run" if "passed" in cells else "not run"
        lines.append(f"| `{way}` | {' | '.join(cells)} | {run_on} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JUnit XML file of tests/test_matrix.py")
    args = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table(read_results(args.results))}\n{END}{after}", encoding="utf-8")
    print(f"Written: {PAGE}")


if __name__ == "__main__":
    main()

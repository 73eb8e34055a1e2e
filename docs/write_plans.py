"""Write the planner's estimates into the headers of recipes/configs.

    make plans

A test says which header is no longer what the planner says.
"""

from pathlib import Path

from sarlang_sft.planning.headers import planned_text

ROOT = Path(__file__).parent.parent


def main() -> None:
    for path in sorted((ROOT / "recipes" / "configs").rglob("*.yaml")):
        if path.name.startswith(("sarclip", "sarcap")):  # which the planner does not know
            continue
        config = path.relative_to(ROOT)
        path.write_text(planned_text(ROOT, config), encoding="utf-8")
        print(config, flush=True)


if __name__ == "__main__":
    main()

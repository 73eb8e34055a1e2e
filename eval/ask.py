r"""Ask a model about one image.

    python eval/ask.py --model outputs/demo/base --adapter outputs/demo/lora \
        --image outputs/demo/sample/SARimages/SIM_000001.png "How many ships are in the image?"
"""

import argparse
from pathlib import Path

from sarlang_sft.errors import InputError, exit_on_bad_input
from sarlang_sft.imagery import load_picture
from sarlang_sft.inference import Asked, answer_each, load_tuned
from sarlang_sft.sarlang import VQA_PROMPT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", help="what to ask")
    parser.add_argument("--model", required=True, help="folder or hub name of the model")
    parser.add_argument("--adapter", help="folder of the adapter")
    parser.add_argument("--image", required=True, help="an image file")
    parser.add_argument("--prompt", default=VQA_PROMPT, help="prompt around the question (default: %(default)s)")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="longest answer (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float16", "float32"])
    args = parser.parse_args()

    if not Path(args.image).is_file():
        raise InputError(f"--image {args.image}: no such file")
    tuned = load_tuned(args.model, args.adapter, args.dtype)
    turn = {"question": args.prompt.replace("{question}", args.question), "answer": ""}
    asked = Asked([load_picture(Path(args.image), tuned.image_ops)], [turn])
    [(text, logprob)] = answer_each(tuned, [asked], args.max_new_tokens)
    print(f"{text}   (log-probability {logprob:.2f})")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()

"""Write a data folder with its images as shards, to train from an object store.

    python data_prep/write_shards.py --data data/sarlang --out shards/sarlang --shard_mb 16
    aws s3 cp --recursive shards/sarlang s3://bucket/sarlang
    torchrun --nproc_per_node 8 recipes/qwen_lora.py --config ... --data s3://bucket/sarlang

The folder holds the same tables, and WebDataset shards with records and images; it can also be trained from where it
is. Write at least 20 shards for every GPU that will train (docs/scale.md).
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.records import image_root_of, print_manifest
from sarlang_sft.shard_writing import print_shards, write_sharded


@dataclass
class ShardArguments:
    data: str = field(metadata={"help": "Data folder."})
    out: str = field(metadata={"help": "Folder to write; an earlier one in shards is replaced."})
    image_root: str | None = field(default=None, metadata={"help": "Folder of the images; default: the manifest's."})
    shard_mb: float = field(default=16.0, metadata={"help": "Size of a shard, in millions of bytes."})
    seed: int = field(default=0, metadata={"help": "Records are shuffled by it, once."})


def main() -> None:
    (args,) = parse_arguments([ShardArguments], __doc__)
    data = Path(args.data)
    image_root = image_root_of(data, args.image_root)
    manifest = write_sharded(data, Path(args.out), image_root, int(1e6 * args.shard_mb), args.seed)
    print_manifest(manifest)
    print_shards(manifest)
    print(f"Data folder in shards: {args.out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()

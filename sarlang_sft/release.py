"""An adapter merged into its base model, and the proof that the merged model is the adapted one."""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from sarlang_sft.adapter_updates import Update, changes_something, read_updates
from sarlang_sft.combining import Blend, check_plain, combine_adapters
from sarlang_sft.companions import check_companions, write_companions
from sarlang_sft.environment import versions
from sarlang_sft.errors import InputError
from sarlang_sft.fingerprints import base_fingerprint
from sarlang_sft.imagery import load_ops, save_ops
from sarlang_sft.loading import DTYPES, load_processor, module_names
from sarlang_sft.merge_base import NOT_QUANTISED, Base, check_same_base, open_base, read_facts
from sarlang_sft.merging import Checkpoint, check_disk, check_written, new_kinds, write_merged
from sarlang_sft.parity import Parity, check_parity, compare_logits, wanted_logits
from sarlang_sft.quantisation import bits_of
from sarlang_sft.safetensors_stream import FLOATS
from sarlang_sft.whole_output import whole_folder

REPORT = "merge_report.json"
CHECKED = (
    "files, keys, shapes and dtypes as the base's",
    "computed tensors are finite",
    "processor",
    "generation config",
)
WITH_LOGITS = ("the model loads from its folder alone", "logits as base + adapter")


@dataclass(frozen=True)
class MergeReport:
    """What a merge was made of, and what was checked.

    The first four are of the logits, see `Parity`, computed in the base's dtype (or the one asked for); without the
    check of the logits they are None.

    Attributes:
        dtype: Of the merged weights, or of most of them.
        samples: Inputs whose logits were compared.
        logits: The same figures in this dtype and in float32.
        adapters: Folders.
        adapter_fingerprints: Of the folders' contents: another adapter may lie there later.
        density: None where every value is kept.
        trained_in_bits: 4 or 8 if an adapter was trained on a base that was quantised while it loaded, else 0.
        base_fingerprint: See `base_fingerprint`.
        checks: What was found right.
        not_checked: What was left out.
    """

    max_abs_diff: float | None
    effect: float | None
    logit_std: float | None
    dtype: str
    samples: int
    logits: list[Parity]
    base: str
    base_fingerprint: str
    adapters: list[str]
    adapter_fingerprints: list[str]
    weights: list[float]
    combine: str
    density: float | None
    trained_in_bits: int
    tensors: int
    changed_tensors: int
    checks: list[str]
    not_checked: list[str]
    versions: dict[str, str]


def merge_adapter(base: str, adapter: str, out: Path, dtype: str = "auto", logits_check: bool = True) -> MergeReport:
    """[`merge_adapters`] for a single one."""
    return merge_adapters(base, Blend([adapter], [1.0]), out, dtype, logits_check)


def merge_adapters(base: str, blend: Blend, out: Path, dtype: str = "auto", logits_check: bool = True) -> MergeReport:
    """Write base + adapters as one checkpoint with its processor and image operations, checked before it appears.

    The weights are streamed: memory does not grow with the model, except for the check of the logits.

    Args:
        dtype: Of the merged weights; `auto` keeps each tensor's own.
        logits_check: Load base + adapter and the merged model, one after the other, and compare their logits, in the
            base's dtype and in float32.

    Raises:
        InputError: `out` exists or has no room, the base is not whole or stored quantised, an adapter does not fit it
            or changes nothing, or what was written is not the base's with the update.
    """
    if out.exists():
        raise InputError(f"--out {out}: exists; choose another folder")
    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype}: choose one of {', '.join(DTYPES)}")
    opened = open_base(base)
    bits = max(_check_origin(adapter, opened) for adapter in blend.adapters)
    with tempfile.TemporaryDirectory() as scratch:
        adapter, said = Path(blend.adapters[0]), f"--adapter {' '.join(blend.adapters)}"
        if blend.weights != [1.0]:
            adapter = _combined(opened, blend, Path(scratch))
        updates, skeleton = _updates(opened, adapter, said)
        if not changes_something(opened.checkpoint.tensors, updates):
            raise InputError(
                f"{said}: changes no weight, and so changes no logit of the base; it is untrained or belongs to "
                "another model"
            )
        kinds = new_kinds(opened.checkpoint, dtype)
        check_disk(opened.checkpoint, kinds, out)
        processor = load_processor(str(adapter), opened.backbone)
        with whole_folder(out) as building:
            changed = write_merged(opened.checkpoint, updates, kinds, building)
            if not changed:
                raise InputError(f"{said}: rounding takes all of its update away; merge with --dtype float32")
            write_companions(opened.folder, skeleton, processor, load_ops(adapter), dtype, building)
            check_written(opened.checkpoint, kinds, building)
            check_companions(building, opened.backbone, processor)
            logits = _parities(opened, adapter, said, building, dtype) if logits_check else []
            report = MergeReport(
                max_abs_diff=logits[0].max_abs_diff if logits else None,
                effect=logits[0].effect if logits else None,
                logit_std=logits[0].logit_std if logits else None,
                dtype=_most(opened.checkpoint, kinds),
                samples=logits[0].samples if logits else 0,
                logits=logits,
                base=base,
                base_fingerprint=opened.fingerprint,
                adapters=blend.adapters,
                adapter_fingerprints=[base_fingerprint(adapter) for adapter in blend.adapters],
                weights=blend.weights,
                combine=blend.combine,
                density=blend.kept(),
                trained_in_bits=bits,
                tensors=len(kinds),
                changed_tensors=len(changed),
                checks=[*CHECKED, *(WITH_LOGITS if logits else ())],
                not_checked=[] if logits else list(WITH_LOGITS),
                versions=versions(),
            )
            (building / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return report


def _check_origin(adapter: str, base: Base) -> int:
    """In how many bits an adapter's base was quantised; raises [`InputError`] if it was another base."""
    if not Path(adapter).is_dir():
        raise InputError(f"--adapter {adapter}: no such folder")
    facts = read_facts(Path(adapter))
    check_same_base(adapter, facts, base)
    options = facts.get("options", {})
    return bits_of(options.get("load_in_4bit"), options.get("load_in_8bit"))


def _updates(base: Base, adapter: Path, said: str) -> tuple[dict[str, Update], PreTrainedModel]:
    """What an adapter does to the base's tensors, and the model that this was found with."""
    skeleton, tensors = base.skeleton(), base.checkpoint.tensors
    places = {name: key for key, name in module_names(tensors, skeleton).items()}
    updates = read_updates(adapter, said, skeleton, places)
    for name in updates:
        if (kind := tensors[name].kind) not in FLOATS:
            raise InputError(f"--base {base.name}: {name} is stored as {kind}: {NOT_QUANTISED}")
    return updates, skeleton


def _combined(base: Base, blend: Blend, scratch: Path) -> Path:
    """One adapter in place of several, with the processor of the first."""
    for adapter in blend.adapters:
        check_plain(adapter)
        _updates(base, Path(adapter), f"--adapter {adapter}")
    ops = [load_ops(Path(adapter)) for adapter in blend.adapters]
    for adapter, own in zip(blend.adapters, ops, strict=True):
        if own != ops[0]:
            raise InputError(
                f"--adapter {adapter}: has the image operations {own}, {blend.adapters[0]} with {ops[0]}: "
                "one model sees its images in one way"
            )
    load_processor(blend.adapters[0], base.backbone).save_pretrained(scratch)
    save_ops(scratch, ops[0])
    combine_adapters(blend, base.skeleton(), scratch)
    return scratch


def _parities(base: Base, adapter: Path, said: str, merged: Path, dtype: str) -> list[Parity]:
    """The logits' differences in the dtype of the weights and in float32; one model at a time is in memory."""
    wanted = {dtype: wanted_logits(str(base.folder), adapter, said, dtype)}
    stored = wanted[dtype].dtype
    if stored != torch.float32:
        wanted["float32"] = wanted_logits(str(base.folder), adapter, said, "float32")
    parities = []
    for loaded_in, of_it in wanted.items():
        parities.append(compare_logits(of_it, merged, loaded_in))
        check_parity(parities[-1], stored, said)
    return parities


def _most(base: Checkpoint, kinds: dict[str, str]) -> str:
    """The dtype that most merged values have."""
    values = dict.fromkeys(FLOATS, 0)
    for name, stored in base.tensors.items():
        if kinds[name] in FLOATS:
            values[kinds[name]] += stored.shape.numel()
    return str(FLOATS[max(values, key=values.get)]).removeprefix("torch.")


def describe(report: MergeReport) -> str:
    """The report for the screen."""
    lines = [f"{report.changed_tensors} of {report.tensors} tensors changed, in {report.dtype}"]
    lines += [
        f"{parity.dtype}: the adapter moves the logits by up to {parity.effect:.2e}; merging changes them by "
        f"{parity.max_abs_diff:.2e}"
        for parity in report.logits
    ]
    if report.not_checked:
        lines.append(f"NOT checked, since no model was loaded: {', '.join(report.not_checked)}")
    if report.trained_in_bits:
        lines.append(
            f"The adapter was trained on the base in {report.trained_in_bits} bits; merged, it sits on the whole "
            "weights and answers slightly otherwise. Measure scores on the merged model"
        )
    return "\n".join(lines)

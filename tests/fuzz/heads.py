"""Hold the reader in C against the reader in Python, guided by coverage: ``python -m tests.fuzz.heads FOLDER [OPTIONS]``.

FOLDER contains the extension, compiled with sanitizers; a corpus and a dictionary are added to it. The options are libFuzzer's.
`.ci/fuzz` puts all of this together.
"""

from __future__ import annotations

import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import atheris

from forkserve.http.message import readers
from forkserve.http.message.http1 import read_head
from tests.integration.http.talk import LIMITS
from tests.unit.http.message.heads import BASES, LARGE, PIECES, SMALL, values


def use_extension(path: Path) -> None:
    """Let the readers use another extension than the installed one."""
    spec = spec_from_file_location("forkserve.http.message._head", path, loader=ExtensionFileLoader("_head", str(path)))
    assert spec is not None
    assert spec.loader is not None
    readers._head = module_from_spec(spec)
    spec.loader.exec_module(readers._head)


def main(folder: Path, options: list[str]) -> None:
    """Run until libFuzzer ends the process."""
    use_extension(folder / "_head.abi3.so")
    corpus, words = folder / "corpus", folder / "words"
    corpus.mkdir(exist_ok=True)
    for number, head in enumerate(BASES):
        (corpus / f"base{number}").write_bytes(head)
    words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in piece) + '"\n' for piece in PIECES if len(piece) < 64))
    reading = [(limits, readers.ordinary_reader(limits)) for limits in (LIMITS, SMALL, LARGE)]

    def check(data: bytes) -> None:
        end = data.find(b"\r\n\r\n")
        head = data[: end + 4] if end >= 0 else data + b"\r\n\r\n"
        for limits, read in reading:
            found = read(head)
            if found is not None and values(*found) != values(*read_head(limits, head)):
                raise AssertionError(head)

    atheris.Setup([sys.argv[0], f"-dict={words}", str(corpus), *options], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""The floor of a merge: `python -m experiments.benchmarks.read_and_write FOLDER ... OUT` reads models and writes one file."""

import os
import sys
from pathlib import Path

PIECE = 2**22


def main(inputs: list[Path], out: Path) -> None:
    """Read every file once; write as many bytes as the models have on average, with fsync.

    Args:
        inputs: folders of safetensors files.
        out: file to write.
    """
    buffer = bytearray(PIECE)
    total = 0
    for path in (file for folder in inputs for file in sorted(folder.glob("*.safetensors"))):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    with out.open("wb", buffering=0) as file:
        left = total // len(inputs)
        while left > 0:
            left -= file.write(memoryview(buffer)[: min(left, PIECE)])
        os.fsync(file.fileno())


if __name__ == "__main__":
    main([Path(x) for x in sys.argv[1:-1]], Path(sys.argv[-1]))

"""Tries an installed wheel: runs the example of a README in an empty folder, and names the kernels that were taken.

    python -P packaging/try_wheel.py README.md
"""

import re
import sys
from pathlib import Path
from subprocess import run
from tempfile import TemporaryDirectory


def main(readme: Path) -> None:
    """Ends with an error where the example does."""
    (example,) = re.findall(r"^```python\n(.*?)^```", readme.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    with TemporaryDirectory() as folder:
        run([sys.executable, "-c", example], cwd=folder, check=True)

    from fastledger._native import ecdsa, hashing

    print(f"hashing: {hashing.backend()}, ecdsa: {ecdsa.ecdsa_backend()['kernel']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

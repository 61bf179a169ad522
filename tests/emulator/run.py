"""Runs a test program of the lane kernels on Bochs, which executes AVX-512 instruction by instruction.

``python run.py lanes|sha VECTORS`` builds the program for the bare machine, makes a ROM and a disk, starts Bochs and
passes its verdict on. Needs gcc, binutils and bochs 2.7 with a CPU model "tigerlake" (see README.md).
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parent.parent / "native"
AVX512 = ["-mavx512f", "-mavx512vl", "-mavx512ifma", "-mavx512dq", "-mavx512bw"]
FLAGS = ["-std=c11", "-O3", "-ffreestanding", "-fno-pic", "-fno-pie", "-mno-red-zone", "-fno-stack-protector"]
FLAGS += ["-fno-asynchronous-unwind-tables", f"-I{NATIVE}"]
BOOT_BYTES = 0x10000
PROGRAM_BYTES = 0x80000  # as in boot.S
CYLINDER_BYTES = 16 * 63 * 512  # Bochs takes whole cylinders
SECTOR_BYTES = 512

# Program -> its sources, each with the flags that it needs.
PROGRAMS: dict[str, dict[str, list[str]]] = {
    "lanes": {
        "testing/lanes_test.c": [],
        "secp256k1/ifma/verify8_ifma.c": AVX512,
        "secp256k1/ifma/comb8_ifma.c": AVX512,
        "secp256k1/scalar.c": [],
        "secp256k1/modinv.c": [],
    },
    "sha": {
        "testing/sha_test.c": [],
        "sha256_avx512.c": AVX512[:2] + AVX512[4:],
        "sha256_shani.c": ["-msha", "-msse4.1", "-mssse3"],
        "sha256_portable.c": [],
    },
}


def run(*command: str | Path, cwd: Path) -> None:
    """A build step; its failure is ours."""
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


def build_rom(name: str, where: Path) -> None:
    """Compiles the program and the firmware into ``rom.bin``."""
    objects = []
    sources = PROGRAMS[name] | {"testing/runtime_bare.c": []}
    for source, flags in sources.items():
        target = where / (Path(source).stem + ".o")
        run("gcc", *FLAGS, *flags, "-c", NATIVE / source, "-o", target, cwd=where)
        objects.append(target)
    run("ld", "--no-warn-rwx-segments", "-T", HERE / "program.ld", "-o", "program.elf", *objects, cwd=where)
    run("objcopy", "-O", "binary", "program.elf", "program.bin", cwd=where)
    run("gcc", "-m32", "-c", HERE / "boot.S", "-o", "boot.o", cwd=where)
    run("ld", "-m", "elf_i386", "-T", HERE / "rom.ld", "-o", "boot.elf", "boot.o", cwd=where)
    run("objcopy", "-O", "binary", "boot.elf", "boot.bin", cwd=where)
    program, boot = (where / "program.bin").read_bytes(), (where / "boot.bin").read_bytes()
    if len(program) > PROGRAM_BYTES or len(boot) != BOOT_BYTES:
        raise SystemExit("the program does not fit into the ROM")
    (where / "rom.bin").write_bytes(program.ljust(PROGRAM_BYTES, b"\0") + boot)


def build_disk(vectors: Path, where: Path) -> None:
    """The size of the vectors in the first sector, the vectors from the second on."""
    content = vectors.read_bytes()
    disk = len(content).to_bytes(8, "little").ljust(SECTOR_BYTES, b"\0") + content
    padded = -(-len(disk) // CYLINDER_BYTES) * CYLINDER_BYTES
    (where / "disk.bin").write_bytes(disk.ljust(padded, b"\0"))


def emulate(where: Path) -> bool:
    """Starts Bochs in ``where`` and shows what the program says; whether it passed."""
    shutil.copy(HERE / "bochsrc", where)
    (where / "start").write_text("continue\n")  # for builds with the debugger, which would stop at reset
    command = ["bochs", "-q", "-f", "bochsrc", "-rc", "start"]
    done = subprocess.run(command, cwd=where, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    lines = done.stdout.decode(errors="replace").splitlines()
    for line in lines:
        if "signatures" in line or "hashes" in line or line in ("PASS", "FAIL"):
            print(line, flush=True)
    return "PASS" in lines


def main() -> None:
    """Command line."""
    if len(sys.argv) != 3 or sys.argv[1] not in PROGRAMS:
        raise SystemExit("usage: run.py lanes|sha VECTORS")
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(scratch)
        build_rom(sys.argv[1], where)
        build_disk(Path(sys.argv[2]), where)
        if not emulate(where):
            log = where / "bochs.log"
            print(
                "".join(log.read_text().splitlines(True)[-40:]) if log.exists() else "no log", file=sys.stderr
            )
            raise SystemExit("the emulated machine did not pass")


if __name__ == "__main__":
    main()

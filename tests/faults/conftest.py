"""What the fault tests need of the kernel: a limit on memory, and small disks."""

import contextlib
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers import await_that

_MEMORY = Path("/sys/fs/cgroup/memory")


def _lack(what: str) -> None:
    # On a laptop without the rights the test says that it did not run; in CI it must.
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and in CI there must be")
    pytest.skip(what)


@pytest.fixture
def memory_limit() -> Iterator[Callable[[int, int], None]]:
    """Give what moves a process, with the children it will have, under a limit in bytes."""
    unified = Path("/sys/fs/cgroup/cgroup.controllers")
    root = unified.parent if unified.exists() else _MEMORY
    group = root / f"lesion-screen-{secrets.token_hex(4)}"
    limits = {"memory.max", "memory.swap.max"} if unified.exists() else {"memory.limit_in_bytes"}
    try:
        group.mkdir()
        usable = all((group / name).exists() for name in limits - {"memory.swap.max"})
    except OSError:
        usable = False
    if not usable:
        with contextlib.suppress(OSError):
            group.rmdir()
        _lack("There is no cgroup in which memory can be limited")

    def limit(pid: int, most: int) -> None:
        for name in limits:
            with contextlib.suppress(FileNotFoundError):
                (group / name).write_text("0" if "swap" in name else str(most), encoding="ascii")
        (group / "cgroup.procs").write_text(str(pid), encoding="ascii")

    yield limit
    await_that(lambda: not (group / "cgroup.procs").read_text(encoding="ascii").strip())
    group.rmdir()


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path, int], None]]:
    """Give what puts a disk of so many bytes, which everybody may write to, where a folder is."""
    mounted: list[Path] = []

    def mount(folder: Path, size: int) -> None:
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0777", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False) if os.geteuid() == 0 else None
        if done is None or done.returncode:
            _lack("No small disk can be mounted here")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill a small disk up; returns the file that does it."""
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    return ballast

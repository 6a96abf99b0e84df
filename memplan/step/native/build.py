"""Hatch's build hook: compiles the replay where there is a C compiler, and leaves it out where there is none."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("memplan/step/native")
LIBRARY = "_replay.so"


class NativeReplay(BuildHookInterface[Any]):  # type: ignore[misc]
    """Adds `_replay.so` to a wheel, and to the source tree for an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; on any failure the wheel stays pure Python."""
        if self.target_name != "wheel" or os.environ.get("MEMPLAN_NATIVE") == "0" or os.name != "posix":
            return
        folder = Path(self.root) / FOLDER
        if not self._compile(folder / "replay.c", folder / LIBRARY):
            self.app.display_warning("memplan: no C compiler; the allocator is replayed in Python, which is slower")
            return
        build_data["force_include"][str(folder / LIBRARY)] = str(FOLDER / LIBRARY)
        # The library is called through ctypes: any Python 3, this platform.
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"

    @staticmethod
    def _compile(source: Path, target: Path) -> bool:
        configured = shlex.split(os.environ.get("CC", ""))
        compiler = configured or [name for name in ("cc", "gcc", "clang") if shutil.which(name)][:1]
        if not compiler:
            return False
        command = [*compiler, "-O2", "-fPIC", "-shared", "-o", str(target), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode == 0

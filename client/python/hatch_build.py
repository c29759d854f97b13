"""Compiles the repository's protos into `steer.v1` when the package is built."""

import re
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileProtos(BuildHookInterface):  # type: ignore[type-arg]
    """Writes `src/steer/v1`: messages, their type stubs, and one module with all names."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files."""
        # A source distribution carries the protos; its wheel is built from those.
        if self.target_name != "sdist":
            compile_protos(Path(self.root))


def compile_protos(root: Path) -> None:
    """Compiles the protos beside `root`, or in the repository around it."""
    from importlib.resources import files

    from grpc_tools import protoc

    protos = next(
        (folder for folder in (root / "proto", root.parents[1] / "proto") if folder.is_dir()), None
    )
    if protos is None:
        raise FileNotFoundError(f"no protos at {root}/proto or {root.parents[1]}/proto")
    target = root / "src/steer/v1"
    target.mkdir(exist_ok=True)
    names = sorted(path.stem for path in (protos / "steering/v1").glob("*.proto"))
    arguments = [f"-I{protos}", f"-I{files('grpc_tools') / '_proto'}"]
    arguments += [f"--python_out={target}", f"--pyi_out={target}"]
    if protoc.main(["protoc", *arguments, *(f"steering/v1/{name}.proto" for name in names)]) != 0:
        raise RuntimeError("protoc failed; its messages are above")
    # protoc writes to steering/v1 and imports from there: it knows no other packages.
    generated = target / "steering/v1"
    for path in sorted(generated.iterdir()):
        text = path.read_text()
        text = re.sub(r"^from steering\.v1 import", "from steer.v1 import", text, flags=re.M)
        (target / path.name).write_text(text)
        path.unlink()
    generated.rmdir()
    generated.parent.rmdir()
    imports = "".join(f"from steer.v1.{name}_pb2 import *\n" for name in names)
    (target / "__init__.py").write_text(
        f'"""Messages of the contract, package steering.v1."""\n{imports}'
    )

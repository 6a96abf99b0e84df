"""The process of one measured cell: a request as one line of JSON on stdin, the answer as one line on stdout.

The libraries are imported before the request is read, without touching the GPU, so that a runner can start the next
process while one measures. Exit code 3 with `{"error": ...}` where the cell cannot be run.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec

from memplan.errors import MemplanError, UnavailableError
from memplan.measure.result import MeasureOptions, MeasureResult
from memplan.trace.answer import error_line, innermost_frames
from memplan.trace.spec import TraceSpec


def main() -> int:
    """Runs one cell."""
    answer = os.dup(1)
    # Libraries print to stdout; only the answer may.
    os.dup2(2, 1)
    try:
        import_libraries()
        line = sys.stdin.readline()
        if not line.strip():
            return 0  # the runner had no more cells
        request = json.loads(line)
        spec, options = TraceSpec.from_dict(request["spec"]), MeasureOptions(**request["options"])
        text, code = measure(spec, options).to_json(), 0
    except MemplanError as error:
        kind = "unavailable" if isinstance(error, UnavailableError) else "unsupported"
        text, code = error_line(kind, error.code, error.message, error.hint), 3
    except Exception as error:
        text, code = error_line("failed", "measure_failed", *_explain(error)), 3
    with os.fdopen(answer, "w") as stream:
        stream.write(text + "\n")
    sys.stderr.flush()
    # Skips destructors that would wait for a device in a bad state.
    os._exit(code)


def import_libraries() -> None:
    """What every cell needs; nothing here creates a CUDA context.

    Raises:
        UnavailableError: one of them is missing.
    """
    for package in ("torch", "transformers", "accelerate"):
        if find_spec(package) is None:
            raise UnavailableError(
                f"memplan measure needs {package}", hint='pip install "memplan[trace]"', code=f"no_{package}"
            )
    import torch
    import transformers

    _ = torch.cuda, transformers.AutoConfig, transformers.AutoModelForCausalLM
    if find_spec("peft") is not None:
        import peft

        _ = peft.get_peft_model


def measure(spec: TraceSpec, options: MeasureOptions) -> MeasureResult:
    """Measures in this process, whose GPU memory is the run's.

    Raises:
        UnavailableError: no GPU, or a package that the cell needs is missing.
    """
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise no_gpu()
    if spec.peft is not None and find_spec("peft") is None:
        raise UnavailableError("this cell needs peft", hint="pip install peft", code="no_peft")
    if (spec.load_in_4bit or spec.load_in_8bit) and find_spec("bitsandbytes") is None:
        raise UnavailableError("this cell needs bitsandbytes", hint="pip install bitsandbytes", code="no_bitsandbytes")
    from memplan.measure.session import Session

    torch.manual_seed(0)
    return Session(spec, options).run()


def no_gpu() -> UnavailableError:
    """The error of a machine without a GPU."""
    return UnavailableError(
        "memplan measure needs an NVIDIA GPU that torch can use, and there is none here",
        hint="memplan estimate and memplan trace answer without one; --device cpu runs the same steps on the CPU, "
        "for testing; --suite NAME --list says what a GPU would be asked",
        code="no_gpu",
    )


def _explain(error: Exception) -> tuple[str, str]:
    return f"{type(error).__name__}: {error}".strip()[:2000], innermost_frames(error, 5)


if __name__ == "__main__":
    raise SystemExit(main())

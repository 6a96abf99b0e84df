"""A run's resources for Slurm and Kubernetes.

GPU memory is not asked for by size: a GPU is taken whole, so the GPU that the recipe was judged on is named, and for
Kubernetes the memory that it must have (nvidia.com/gpu.memory of GPU Feature Discovery, in MiB). Host memory is what the
run keeps there, the checkpoint while it is read, and a stated allowance for Python and the data.
"""

from __future__ import annotations

import math

from memplan.catalog.gpus import Gpu, get_gpu
from memplan.errors import InputError
from memplan.estimate import Component, Estimate, VerdictReport
from memplan.units import GIB, MIB

HOST_ALLOWANCE_BYTES = 16 * GIB
# Parts of device names that are not written in capitals.
_SPELLED = {"geforce": "GeForce", "ada": "Ada", "generation": "Generation", "ti": "Ti"}


def host_memory_bytes(estimate: Estimate) -> int:
    """Host memory to ask for: paged or offloaded state, the weights while they are loaded, and the allowance."""
    weights = estimate.component_bytes(Component.WEIGHTS) + estimate.component_bytes(Component.QUANTIZATION_STATE)
    return estimate.host_bytes + weights + HOST_ALLOWANCE_BYTES


def product_labels(gpu: Gpu) -> tuple[str, ...]:
    """The device names of a GPU as GPU Feature Discovery labels them: `NVIDIA-H100-80GB-HBM3`."""
    found = []
    for alias in gpu.aliases:
        if alias.startswith("nvidia-"):
            words = [_SPELLED.get(word, word.upper()) for word in alias.split("-")]
            words[-1] = "PCIe" if words[-1] == "PCIE" else words[-1]
            found.append("-".join(words))
    return tuple(found)


def slurm(estimate: Estimate, *, command: str = "python train.py", name: str = "train") -> str:
    """A batch script.

    Args:
        estimate: of a recipe that names its GPU.
        command: what is run.
        name: of the job.

    Raises:
        InputError: no GPU is named.
    """
    gpu, count, gib = _gpu(estimate), _count(estimate), math.ceil(host_memory_bytes(estimate) / GIB)
    kind = gpu.id.split("-")[0] if gpu.id[:1] in "abhlv" and gpu.id[1:2].isdigit() else gpu.id
    verdict = estimate.verdict(gpu.id)
    return (
        "#!/bin/bash\n"
        f"#SBATCH --job-name={name}\n"
        "#SBATCH --nodes=1\n"
        f"#SBATCH --ntasks-per-node={count}\n"
        "# The GPU as this cluster names it: `sinfo -o %G` lists the names.\n"
        f"#SBATCH --gres=gpu:{kind}:{count}\n"
        f"# {_host_sentence(estimate)}.\n"
        f"#SBATCH --mem={gib}G\n"
        f"# {gpu.name}: {_gpu_sentence(verdict)}\n"
        f"srun {command}\n"
    )


def kubernetes(
    estimate: Estimate, *, image: str = "IMAGE", command: str = "python train.py", name: str = "train"
) -> str:
    """A Job whose pods need the recipe's GPU.

    Args:
        estimate: of a recipe that names its GPU.
        image: of the container.
        command: what is run.
        name: of the job.

    Raises:
        InputError: no GPU is named.
    """
    gpu, count, gib = _gpu(estimate), _count(estimate), math.ceil(host_memory_bytes(estimate) / GIB)
    verdict = estimate.verdict(gpu.id)
    labels = product_labels(gpu)
    expressions = [
        "                  - key: nvidia.com/gpu.memory  # MiB\n"
        "                    operator: Gt\n"
        f'                    values: ["{gpu.usable_bytes // MIB - 1}"]\n'
    ]
    if labels:
        values = ", ".join(f'"{label}"' for label in labels)
        expressions.insert(
            0,
            "                  - key: nvidia.com/gpu.product\n"
            "                    operator: In\n"
            f"                    values: [{values}]\n",
        )
    words = ", ".join(f'"{word}"' for word in command.split())
    return (
        f"# {gpu.name}: {_gpu_sentence(verdict)}\n"
        "apiVersion: batch/v1\n"
        "kind: Job\n"
        "metadata:\n"
        f"  name: {name}\n"
        "spec:\n"
        "  template:\n"
        "    spec:\n"
        "      restartPolicy: Never\n"
        "      affinity:\n"
        "        nodeAffinity:\n"
        "          requiredDuringSchedulingIgnoredDuringExecution:\n"
        "            nodeSelectorTerms:\n"
        "              - matchExpressions:\n"
        f"{''.join(expressions)}"
        "      containers:\n"
        f"        - name: {name}\n"
        f"          image: {image}\n"
        f"          command: [{words}]\n"
        "          resources:\n"
        "            requests:\n"
        f"              memory: {gib}Gi  # {_host_sentence(estimate)}\n"
        "            limits:\n"
        f"              memory: {gib}Gi\n"
        f"              nvidia.com/gpu: {count}\n"
    )


def _gpu(estimate: Estimate) -> Gpu:
    name = estimate.recipe.get("gpu")
    if not name:
        raise InputError("a scheduler needs to know the GPU", hint="name it: --gpu h100-sxm-80gb")
    return get_gpu(str(name))


def _count(estimate: Estimate) -> int:
    return int(estimate.recipe.get("gpus") or 1)


def _host_sentence(estimate: Estimate) -> str:
    parts = [f"{host_memory_bytes(estimate) / GIB:.1f} GiB: weights while they are loaded"]
    if estimate.host_bytes:
        parts.append(f"{estimate.host_bytes / GIB:.1f} GiB of paged or offloaded state")
    return ", ".join((*parts, f"{HOST_ALLOWANCE_BYTES // GIB} GiB allowed for Python and data"))


def _gpu_sentence(verdict: VerdictReport) -> str:
    return (
        f"{verdict.expected_bytes / GIB:.1f} GiB expected, at most {verdict.upper_bytes / GIB:.1f} GiB, "
        f"of {verdict.usable_bytes / GIB:.1f} GiB usable ({verdict.fits.replace('_', ' ')})"
    )

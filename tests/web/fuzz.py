"""Requests made from the OpenAPI document, right and wrong ones, against a running service.

    python -m tests.web.fuzz --examples 2000
    python -m tests.web.fuzz --examples 2000 --operation estimate
    python -m tests.web.fuzz --recipes 2000

The document is narrowed for half of the requests, so that they name models, methods and GPUs that exist and get as far as
the engine; the other half stays as wild as the document allows. `--recipes` sends recipes many of which are answered: random
choices of every model, method, optimizer, GPU and setting, and small configs of every size. Ends with 0 where no answer was a
server error and every answer was one that the document describes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema_rs

from memplan.cards import card_ids
from memplan.catalog.gpus import list_gpus
from memplan.methods import list_methods
from memplan.optimizers.catalog import optimizer_rows
from tests.web.service import running_service

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "negative_data_rejection", "unsupported_method", "allow_header_conformance",
)  # fmt: skip
# What refuses a request that the document does not allow; 413 comes first where it is also too long.
_CONFIG = """
[checks.negative_data_rejection]
expected-statuses = [400, 404, 405, 413, 414, 415, 422]
"""
_DTYPES = ("float32", "bfloat16", "float16")
_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head", "embed_tokens")

_INLINE = {
    "type": "object",
    "required": ["model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"],
    "properties": {
        "model_type": {"enum": ["llama", "mistral", "qwen2", "gemma2", "mixtral", "opt", "gpt2", "phi3", "bert", "t5"]},
        "hidden_size": {"enum": [64, 256, 1024, 4096, 262144, 1]},
        "intermediate_size": {"type": "integer", "minimum": 1, "maximum": 65536},
        "num_hidden_layers": {"type": "integer", "minimum": 1, "maximum": 1024},
        "num_attention_heads": {"enum": [1, 4, 8, 32, 128]},
        "num_key_value_heads": {"enum": [1, 2, 8, 32]},
        "vocab_size": {"type": "integer", "minimum": 1, "maximum": 4000000},
        "tie_word_embeddings": {"type": "boolean"},
        "num_local_experts": {"type": "integer", "minimum": 1, "maximum": 4096},
        "head_dim": {"type": "integer", "minimum": 1, "maximum": 1024},
        "quantization_config": {"type": "object"},
    },
}
_PEFT = {
    "type": "object",
    "properties": {
        "r": {"type": "integer", "minimum": 1, "maximum": 16384},
        "lora_alpha": {"type": "number"},
        "target_modules": {
            "anyOf": [
                {"enum": ["all-linear", ".*proj", "(a+)+$", ".*.*.*.*.*x", "[", "model.layers.0.*"]},
                {"type": "array", "items": {"enum": list(_MODULES)}, "maxItems": 6},
            ]
        },
        "modules_to_save": {"type": "array", "items": {"enum": list(_MODULES)}, "maxItems": 3},
        "num_virtual_tokens": {"type": "integer", "minimum": 1, "maximum": 65536},
        "layers_to_transform": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2000}},
        "rank_pattern": {"type": "object", "additionalProperties": {"type": "integer"}},
        "use_dora": {"type": "boolean"},
        "bias": {"enum": ["none", "all", "lora_only"]},
        "task_type": {"enum": ["CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"]},
    },
}


def narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with known names offered beside any text."""
    schemas = document["components"]["schemas"]
    for name in ("Recipe", "PlanRequest"):
        properties = schemas[name]["properties"]
        known = {
            "method": [method.name for method in list_methods()],
            "optim": list(optimizer_rows()),
            "gpu": [gpu.id for gpu in list_gpus()],
            "dtype": _DTYPES,
            "bnb_4bit_compute_dtype": _DTYPES,
        }
        for key, names in known.items():
            properties[key] = {"anyOf": [{"enum": list(names)}, {"enum": list(names)}, properties[key]]}
        wild = properties["model"]
        properties["model"] = {"anyOf": [{"enum": list(card_ids())}, _INLINE, wild]}
        properties["peft"] = {"anyOf": [_PEFT, properties["peft"]]}
    operation = document["paths"]["/api/v1/models/{id}"]["get"]
    (parameter,) = (one for one in operation["parameters"] if one["in"] == "path")
    parameter["schema"] = {"anyOf": [{"enum": list(card_ids())}, parameter["schema"]]}
    return document


def fuzz(
    examples: int, operations: Sequence[str] = (), seed: int | None = None, phases: str = "examples,coverage,fuzzing"
) -> int:
    """Run; returns schemathesis' exit code, or 1 where an operation was never asked."""
    with running_service("--metrics") as service, tempfile.TemporaryDirectory() as folder:
        with urllib.request.urlopen(service.url + "/openapi.json", timeout=10) as answer:
            document = narrowed(json.load(answer))
        document["servers"] = [{"url": "/"}]
        (Path(folder) / "schemathesis.toml").write_text(_CONFIG, encoding="utf-8")
        file = Path(folder) / "openapi.json"
        file.write_text(json.dumps(document), encoding="utf-8")
        command = [sys.executable, "-m", "schemathesis.cli", "run", str(file), "--url", service.url]
        command += ["--checks", ",".join(CHECKS), "--max-examples", str(examples), "--continue-on-failure"]
        command += ["--suppress-health-check", "all", "--warnings", "off", "--no-color", "--request-timeout", "20"]
        command += ["--phases", phases]
        for operation in operations:
            command += ["--include-operation-id", operation]
        command += ["--seed", str(seed)] if seed is not None else []
        code = subprocess.run(command, check=False, cwd=folder).returncode
        with urllib.request.urlopen(service.url + "/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        print(*(line for line in lines if line.startswith(("memplan_requests_total", "memplan_verdicts"))), sep="\n")
        print(*(line for line in service.log if " ERROR " in line or " WARNING " in line), sep="")
        missing = [
            f"{method.upper()} {path}"
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
            if not operations or operation["operationId"] in operations
            if not any(
                f'method="{method.upper()}",route="{path.replace("{id}", "{id:path}")}"' in line for line in lines
            )
        ]
        print(*(f"never asked: {one}" for one in missing), sep="\n")
        return code or int(bool(missing))


CONFIG_CHOICES: dict[str, tuple[Any, ...]] = {
    "model_type": (
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma2",
        "mixtral",
        "phi3",
        "olmo2",
        "gpt_neox",
        "stablelm",
        "phi",
    ),
    "hidden_size": (64, 256, 1024, 4096, 8192),
    "intermediate_size": (1, 64, 1000, 11008),
    "num_hidden_layers": (1, 2, 3, 31, 64, 1024),
    "num_attention_heads": (4, 8, 64),
    "num_key_value_heads": (1, 2, 4),
    "vocab_size": (100, 32000, 262144, 4000000),
    "tie_word_embeddings": (True, False),
    "sliding_window": (None, 16, 4096),
    "num_local_experts": (2, 8, 64),
}
RECIPE_CHOICES: dict[str, tuple[Any, ...]] = {
    "micro_batch_size": (1, 2, 3, 8, 64, 65536),
    "sequence_length": (1, 2, 17, 128, 512, 4096, 131072, 16777216),
    "target_length": (1, 64),
    "gradient_accumulation_steps": (1, 2, 3, 1000000),
    "activation_checkpointing": (True, False, "reentrant", "non-reentrant"),
    "activation_offloading": (True, False, "checkpoints", "hidden-states", "saved-tensors"),
    "attn_implementation": ("eager", "sdpa", "flash_attention_2"),
    "padding": (True, False),
    "packing": (True, False),
    "use_cache": (True, False),
    "keep_outputs": (True, False, "backward"),
    "expandable_segments": (True, False),
    "empty_cache_steps": (1, 10, 1000000),
    "num_added_tokens": (0, 1, 1000000),
    "num_labels": (1, 3, 1000000),
    "tie_word_embeddings": (True, False),
    "optimizer_in_backward": (True, False),
    "max_grad_norm": (0, 1.0),
    "torch_version": ("2.11", "2.12", "2.13", "2.14"),
    "precision": ("fp32", "amp", "pure", "master", "master-fp32-grads"),
    "dtype": _DTYPES,
    "task": ("causal-lm", "sequence-classification", "token-classification", "feature-extraction", "masked-lm"),
    "loss": ("default", "chunked", "fused_linear"),
    "stack": ("transformers", "trl", "liger", "unsloth", "torchtune"),
    "load_in_4bit": (True, False),
    "load_in_8bit": (True, False),
    "bnb_4bit_quant_type": ("nf4", "fp4"),
    "bnb_4bit_use_double_quant": (True, False),
    "lora_r": (1, 8, 16384),
    "target_modules": ("all-linear", ["q_proj", "v_proj"], ".*proj", ["query_key_value"]),
    "num_virtual_tokens": (1, 20, 65536),
    "prepare_model_for_kbit_training": (True, False),
    "autocast_adapter_dtype": (True, False),
    "gpus": (1, 8, 65536),
}


def random_recipe(chosen: random.Random) -> dict[str, Any]:
    """A recipe that is likely to be answered."""
    if chosen.random() < 0.7:
        model: Any = chosen.choice(card_ids())
    else:
        needed = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        model = {key: chosen.choice(CONFIG_CHOICES[key]) for key in needed}
        model |= {key: chosen.choice(values) for key, values in CONFIG_CHOICES.items() if chosen.random() < 0.4}
    recipe = {"model": model, "sequence_length": chosen.choice((16, 128, 512))}
    known = {
        "method": tuple(method.name for method in list_methods()),
        "optim": tuple(name for name, row in optimizer_rows().items() if not row.unsupported),
        "gpu": tuple(gpu.id for gpu in list_gpus()),
    }
    recipe |= {key: chosen.choice(names) for key, names in known.items() if chosen.random() < 0.6}
    return recipe | {key: chosen.choice(values) for key, values in RECIPE_CHOICES.items() if chosen.random() < 0.07}


def send_recipes(count: int, seed: int | None = None, path: str = "estimate") -> int:
    """Send random recipes; returns 1 where an answer was a server error or not what the document says."""
    chosen = random.Random(seed)
    seen: Counter[str] = Counter()
    slow: list[tuple[float, str]] = []
    with running_service() as service:
        with urllib.request.urlopen(service.url + "/openapi.json", timeout=10) as answer:
            document = json.load(answer)
        checks = {
            status: jsonschema_rs.Draft202012Validator({"$ref": f"#/components/schemas/{name}", **document})
            for status, name in ((200, path.capitalize()), (422, "Error"))
        }
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
        for _ in range(count):
            recipe = random_recipe(chosen)
            started = time.perf_counter()
            connection.request("POST", f"/api/v1/{path}", json.dumps(recipe), {"Content-Type": "application/json"})
            response = connection.getresponse()
            body = json.loads(response.read())
            slow.append((time.perf_counter() - started, json.dumps(recipe)))
            good = response.status in checks and checks[response.status].is_valid(body)
            seen[f"{response.status}" if good else f"{response.status}, not as documented"] += 1
            if not good:
                print(response.status, json.dumps(recipe), json.dumps(body)[:300])
        connection.close()
        print(*(line for line in service.log if " ERROR " in line or "Error" in line), sep="")
    for seconds, text in sorted(slow, reverse=True)[:5]:
        print(f"slow: {seconds:.2f} s {text}")
    print(dict(seen))
    return int(bool(set(seen) - {"200", "422"}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100, help="for each operation")
    parser.add_argument("--operation", action="append", help="only this operation id; may be repeated")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--phases", default="examples,coverage,fuzzing", help="of schemathesis")
    parser.add_argument("--recipes", type=int, default=0, metavar="N", help="send N random recipes instead")
    given = parser.parse_args()
    if given.recipes:
        return send_recipes(given.recipes, given.seed, (given.operation or ["estimate"])[0])
    return fuzz(given.examples, given.operation or (), given.seed, given.phases)


if __name__ == "__main__":
    sys.exit(main())

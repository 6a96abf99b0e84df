"""One line of help and a heading for every recipe key, in the order in which `--help` shows them.

A test holds that the keys are exactly those of `Recipe`.
"""

from __future__ import annotations

RECIPE_HELP: dict[str, dict[str, str]] = {
    "Model": {
        "model": "Card id (`memplan models`), path of a config.json or its directory, or a JSON object.",
        "task": "What head the model has; by default what its config says.",
        "num_labels": "Labels of a classification head.",
        "num_added_tokens": "Rows that the embedding is resized by.",
        "tie_word_embeddings": "Whether head and embedding are one weight.",
    },
    "Method": {
        "method": "How it is fine-tuned (`memplan methods`); by default every parameter is trained.",
        "peft": "What an adapter_config.json holds: its path, or a JSON object.",
        "lora_r": "Rank.",
        "lora_dropout": "Dropout before the adapter.",
        "target_modules": "Module names with commas between them, a regular expression, or all-linear.",
        "num_virtual_tokens": "Length of a prompt or prefix.",
        "trainable": "Patterns of parameters to train, with commas between them; method full only.",
        "autocast_adapter_dtype": "Whether PEFT casts 16-bit adapters to float32.",
        "prepare_model_for_kbit_training": "Whether PEFT prepares a quantized base.",
    },
    "Precision and quantization": {
        "dtype": "In which type base weights are loaded.",
        "precision": "Who keeps which copy of a trained weight.",
        "autocast_dtype": "Type of autocast under precision amp.",
        "load_in_4bit": "bitsandbytes 4-bit weights.",
        "load_in_8bit": "bitsandbytes LLM.int8 weights.",
        "bnb_4bit_quant_type": "4-bit code book.",
        "bnb_4bit_use_double_quant": "Whether the quantization constants are quantized again.",
        "bnb_4bit_compute_dtype": "Type that 4-bit layers compute in.",
        "bnb_4bit_quant_storage": "Type that 4-bit data are packed in.",
        "llm_int8_skip_modules": "Modules that stay unquantized, with commas between them.",
        "quantization_config": "A quantization_config as transformers writes it: a path, or a JSON object.",
    },
    "Batch": {
        "micro_batch_size": "Sequences in one forward pass.",
        "sequence_length": "Tokens of a sequence.",
        "target_length": "Tokens of a target, for encoder-decoder models.",
        "gradient_accumulation_steps": "Micro-batches before the optimizer steps.",
        "padding": "Whether batches carry a padding mask.",
        "packing": "Whether several texts share a sequence.",
        "packed_text_tokens": "Tokens of a packed text, on average.",
    },
    "Step": {
        "optim": "Optimizer by transformers' name (`memplan optimizers`).",
        "optim_args": "Options of the optimizer: a JSON object, or its path.",
        "optim_target_modules": "Modules that a low-rank optimizer works on, as for --target-modules.",
        "optimizer_in_backward": "One optimizer for each parameter: it steps, and drops the gradient, inside backward.",
        "max_grad_norm": "Gradient clipping; 0 is off.",
        "activation_checkpointing": "Recompute activations in backward; alone it means true.",
        "activation_offloading": "What waits for backward in host memory; true is what the stack's own switch does.",
        "attn_implementation": "Attention kernel, as transformers spells it.",
        "loss": "How logits and loss are computed.",
        "stack": "Whose training loop runs the step.",
        "stack_version": "Its version, where defaults moved.",
        "torch_version": "Version of PyTorch that runs it.",
        "keep_outputs": "Outputs live until the next ones (true), or until backward has ended (backward).",
        "use_cache": "Whether the forward pass fills a key/value cache.",
    },
    "Between and after steps": {
        "eval_strategy": "Whether Trainer evaluates between the steps.",
        "per_device_eval_batch_size": "Sequences of a batch that is evaluated.",
        "prediction_loss_only": "Whether evaluation keeps losses alone, not logits and labels.",
        "eval_accumulation_steps": "Batches after which what evaluation keeps goes to the host; by default none does.",
        "max_eval_samples": "Sequences that are evaluated; needed where logits are kept.",
        "max_new_tokens": "Tokens that are generated greedily after a step, with a key/value cache; none if unsaid.",
        "max_prompt_length": "Tokens of the prompts that they follow, as many at a time as are evaluated.",
        "save_strategy": "Whether Trainer saves checkpoints between the steps.",
        "merge_and_unload": "Whether the adapter is merged into the base after the last step.",
    },
    "Hardware": {
        "gpu": "GPU to judge on (`memplan gpus`).",
        "gpus": "How many of them.",
        "expandable_segments": "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True.",
        "empty_cache_steps": "Optimizer steps between calls of empty_cache, made before gradients are dropped.",
    },
}

"""How each PEFT method rewrites the layer that it stands on: one module a method or a family of them, like PEFT's own."""

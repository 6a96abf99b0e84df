"""memplan: how much GPU memory a training run needs, where it goes, and whether it fits."""

"""Preparation: raw downloads -> prepared datasets, which `mmpareto.datasets` reads."""

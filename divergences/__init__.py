"""divax.divergences"""

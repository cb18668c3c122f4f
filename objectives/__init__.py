"""divax.objectives"""

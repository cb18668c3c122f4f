"""divax.trainers"""

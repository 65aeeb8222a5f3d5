"""What scripts/train_demo.py trains the demo checkpoint with; the parts that any training shares are in
framepack_core/training.
"""

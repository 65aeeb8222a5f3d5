"""What the demo checkpoint must reach in these tests. Set after training, below what scripts/evaluate.py measured.

PSNRs are in dB, shares 0..1.
"""

OBEYED = 1.0  # share of the sections that show their prompt's motion
ROUND_TRIP_LOSS = 2.0  # what the first frame may lose against the start image through the VAE alone
HANDOVER = 25.0  # frames 1 to 4 against the world's own film: the film goes on from the start image
HANDOVER_FALL = 3.0  # how far its mean falls below, at least, when a section cannot see the start image
MISTAKEN = 0.34  # share that may still seem obeyed in films made with a mistake

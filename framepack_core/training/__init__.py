"""Training of the packed transformer, with torch and nothing else.

Reading order: clips, generators, sections, velocity, objective; then operations, initialise, muon, optimizer,
weight_average, loop, run_files; sampling turns a trained model into films without a host.
"""

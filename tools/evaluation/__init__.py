"""What a trained demo checkpoint can do, in figures: films made through the real host path, judged by demo_world.

Reading order: variants (what is measured, as data), controls (mistakes that the measures must notice), films (scenes
and prompts to frames), measures (frames to figures), results (the JSON file, row by row), table and sheets
(for people). `python3 scripts/evaluate.py` runs all of it; tests/meaning uses films, measures and controls.

The package is imported as framepack_pack.tools.evaluation, with ComfyUI on the path. Letters in shape comments: B
films, S sections, F frames, H W pixels.
"""

"""The only place in the core that knows ComfyUI.

detection makes core's loaders recognise the checkpoint; native_model is the MODEL they build; checkpoints loads what
core's loaders do not (shards) and refuses what is not FramePack; checkpoint_set loads a small complete set.
text_encoding, conditioning, section_denoiser and frames connect the core's ideas to CLIP, CONDITIONING, guiders and
VAEs.
"""

"""The only place in the core that knows ComfyUI.

detection makes core's loaders recognise the checkpoint; native_model is the MODEL they build; checkpoints
loads what core's loaders do not (shards) and refuses what is not FramePack; conditioning, section_denoiser
and decoding connect the core's ideas to conditionings, guiders and VAEs.
"""

"""Numbers that the checkpoints, the original program or the paper fix, each with its source.

FP = github.com/lllyasviel/FramePack at 97fe5db; the paper is arXiv 2504.12626.
"""

FRAMES_PER_SECOND = 30  # FP demo_gradio.py: section count and mp4 writer
LATENT_CHANNELS = 16  # HunyuanVideo VAE
FRAMES_PER_LATENT = 4  # causal temporal compression: T latents are 4T - 3 frames
PIXELS_PER_LATENT = 8  # spatial compression
SIZE_MULTIPLE = 16  # pixels: VAE (8) times the 2x2 patch

LATENT_WINDOW_SIZE = 9  # latent frames of a section; the checkpoints were trained with it
SECONDS = 5.0  # FP demo_gradio.py: total_second_length
STEPS = 25  # FP demo_gradio.py: steps
GUIDANCE = 10.0  # FP demo_gradio.py: gs, the distilled guidance scale
RESOLUTION = 640  # FP bucket_tools.py: the only bucket group

HISTORY_FRAMES_1X = 1  # FP demo_gradio.py: frames next to the section, full resolution
HISTORY_FRAMES_2X = 2  # FP demo_gradio.py: frames patchified by (2, 4, 4)
HISTORY_FRAMES_4X = 16  # FP demo_gradio.py: frames patchified by (4, 8, 8)

TIMESTEP_SCALE = 1000.0  # FP k_diffusion/wrapper.py: the model is fed sigma * 1000 and guidance * 1000
LATENT_SCALE = 0.476986  # HunyuanVideo VAE: scaling_factor; histories hold unscaled latents

SHIFT_LENGTH = (256, 4096)  # FP k_diffusion_hunyuan.py: sequence lengths at which mu is fixed
SHIFT_MU = (0.5, 1.15)  # FP k_diffusion_hunyuan.py: mu at those lengths
SHIFT_MAX = 7.0  # FP k_diffusion_hunyuan.py: exp_max

MAX_PROMPT_TOKENS = 256  # FP hunyuan.py: longer prompts are cut
TEMPLATE_TOKENS = 95  # diffusers pipeline_hunyuan_video.py: crop_start of the LLaMA prompt template

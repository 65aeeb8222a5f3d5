"""What scripts/train_demo.py makes the demo checkpoint of, on films of tools/demo_world; one file for each part.

vae and encoders are stages of their own. Of the transformer: films (the host's VAE on many films at once), text
(captions to features, many at once), dataset (what training reads), transformer (sizes, examples, training),
transformer_stage (the command), measure (what the trained model shows).
"""

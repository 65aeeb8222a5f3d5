"""Training of the demo checkpoint on films of tools/demo_world, one file for each part that trains.

Of the transformer: films (the host's VAE on many films at once), text (captions to features, many at once), dataset
(what training reads), transformer (sizes, examples, training), measure (what the trained model shows). The host's
objects come from the caller; nothing of these imports it.
"""

"""The demo world: short films of one shape that does what its captions say, drawn from a few numbers.

Reading order: scene (what a film is), motion (where the object is in every frame), shapes, backgrounds and render
(the pixels), captions (the words), sampling (random scenes, and those kept for tests), measure and judge (what a
film, true or generated, shows). `python3 -m tools.demo_world` draws a contact sheet.

Letters in shape comments: B films, S sections, F frames, H W pixels, M motions. Lengths are in units of the picture's
short side, y downwards; the picture is a torus: what leaves at one edge comes in at the other.
"""

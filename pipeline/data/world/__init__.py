"""A miniature world: drawn images in place of LAION and ImageNet, everything else real.

16 classes of objects are drawn in styles that stand for the benchmarks. Each class has a habitual
colour, texture and background, used with some probability: the shortcut that photographs teach.
Every image is a pure function of (seed, set, index).

`plan` says which files there are, `items` what an image of a set is, `render` draws the styles from
the shapes of `shapes` by the means of `drawing`, `build` writes the files and `embedder` trains the
model that stands for the published CLIP weights.
"""

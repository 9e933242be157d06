"""CLIP training by open_clip_train: guarded, resumable, followed."""

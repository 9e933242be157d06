"""A split in the forms that other programs read: which rows, under which names, in which files."""

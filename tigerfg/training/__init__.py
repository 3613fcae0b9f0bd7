"""Reference training: the staged recipe of `tigerfg train`. Needs the `train` extra."""

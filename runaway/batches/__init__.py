"""What a batch executes: argument lists, parameters, folders and identities, told before anything is started.

Pure but for reading the files that the person names. Driving, display and results are elsewhere.

`templates` one string -> many; `words` one string -> the words of a command line; `lines`, `rows`, `grids` what files and options
hold; `sources` ties them to a `Plan`; `folders` says where each execution runs and where its results go; `identity` tells
executions with the same content from others, for `--resume`.
"""

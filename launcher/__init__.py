"""The one package that knows everybody: command line, spawning, supervision."""

"""Runs every benchmark, or the one that is named first, with the arguments that follow."""

import importlib
import pkgutil
import sys

import benchmarks

names = [
    module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.name.startswith("_")
]
for name in sys.argv[1:2] or names:
    if name not in names:
        sys.exit(f"no benchmark {name!r}; there are {', '.join(names)}")
    print(f"\n## {name}\n", flush=True)
    importlib.import_module(f"benchmarks.{name}").main()

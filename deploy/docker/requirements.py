"""Print the product's dependencies and those of the extras named, one a line: a layer that the code does not change."""

import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
lines = [*project["dependencies"], *(line for extra in sys.argv[1:] for line in project["optional-dependencies"][extra])]
sys.stdout.write("\n".join(lines) + "\n")

"""The commands of the shell, one function each; `genprior.cli` finds and runs them."""

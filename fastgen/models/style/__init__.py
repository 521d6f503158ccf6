"""Networks that give one picture the style of another: AdaIN and MicroAST."""

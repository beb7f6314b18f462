"""Everything that touches Triton: its process, its wire, its backend."""

"""Networks of one bit: trained, packed, folded, exported to C."""

"""`disco experiment`: policies compared on real engines in real time, beside what is predicted of them."""

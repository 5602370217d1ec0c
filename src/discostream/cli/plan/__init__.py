"""`disco plan`: what the policy in force would do, and what others would do in its place."""

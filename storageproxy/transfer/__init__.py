"""
Bulk data between connections and volumes.
"""

"""Reports on a build's candidates: funnel, gates, drift, diff, explain, and the report's page."""

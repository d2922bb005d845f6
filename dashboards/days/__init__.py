"""Synthetic days: what a Prometheus would have scraped from services that have a good day, or a bad one."""

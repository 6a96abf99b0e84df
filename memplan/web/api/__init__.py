"""The REST API under `/api/v1`, and what a monitor asks."""

from __future__ import annotations

from fastapi import APIRouter

from memplan.web.api import catalogue, checks, docs, estimates
from memplan.web.api.service import metrics_router
from memplan.web.api.service import router as service_router

router = APIRouter()
router.include_router(estimates.router)
router.include_router(checks.router)
router.include_router(catalogue.router)
router.include_router(docs.router)

__all__ = ["metrics_router", "router", "service_router"]

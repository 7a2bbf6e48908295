package controller

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"time"
)

// maxServices bounds the body of POST /v1/services, in bytes: a few hundred thousand services.
const maxServices = 64 << 20

func servicePath(r *http.Request) (netip.Prefix, error) {
	p, err := ParseServiceAddress(r.PathValue("outside"))
	if err != nil {
		return p, fail(http.StatusBadRequest, "service address: %v", err)
	}
	return p, nil
}

func (c *Controller) listServices(r *http.Request) (int, any, error) {
	vm := r.URL.Query().Get("vm")
	return c.read(r, func() (any, error) {
		out := []ServiceStatus{}
		for _, s := range c.svc.sorted() {
			if st := c.serviceStatus(s); vm == "" || st.VM == vm {
				out = append(out, st)
			}
		}
		return out, nil
	})
}

// everywhere: every Map-Server has confirmed the service as it is.
func everywhere(s ServiceStatus) bool {
	return s.State == ServiceConfirmed || s.State == ServiceDeleted
}

// waitForService answers with a service's status once until holds, or the wait is over.
func (c *Controller) waitForService(r *http.Request, outside netip.Prefix, wait time.Duration) (ServiceStatus, error) {
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	return c.awaitService(ctx, outside, everywhere)
}

func (c *Controller) getService(r *http.Request) (int, any, error) {
	outside, err := servicePath(r)
	if err != nil {
		return 0, nil, err
	}
	wait, err := waitOf(r, 0)
	if err != nil {
		return 0, nil, err
	}
	st, err := c.waitForService(r, outside, wait)
	return http.StatusOK, st, err
}

// steerService changes a service, and answers with its status once every Map-Server has confirmed it, or the wait is over.
func (c *Controller) steerService(r *http.Request, change func(outside netip.Prefix, now time.Time) (created bool, err error)) (int, any, error) {
	outside, err := servicePath(r)
	if err != nil {
		return 0, nil, err
	}
	wait, err := waitOf(r, 0)
	if err != nil {
		return 0, nil, err
	}
	v, err := c.change(r.Context(), func(now time.Time) (any, error) { return change(outside, now) })
	if err != nil {
		return 0, nil, err
	}
	status := http.StatusOK
	if v.(bool) {
		status = http.StatusCreated
	}
	st, err := c.waitForService(r, outside, wait)
	return status, st, err
}

func (c *Controller) putService(r *http.Request) (int, any, error) {
	var in struct {
		ServiceStatus        // so that what was read can be put back; its other fields are ignored
		Inside        string `json:"inside"`
	}
	if err := body(r, &in); err != nil {
		return 0, nil, err
	}
	return c.steerService(r, func(outside netip.Prefix, now time.Time) (bool, error) {
		if in.Outside.IsValid() && in.Outside != outside {
			return false, fail(http.StatusBadRequest, "service address %s: the body has another one: %s", ServiceName(outside), in.Outside)
		}
		req := ServiceRequest{VM: in.VM, Inside: in.Inside}
		if there, err := c.there(outside, req); there || err != nil {
			return false, err
		}
		inside, vm, err := c.bind(outside, req)
		if err != nil {
			return false, err
		}
		if s := c.svc.live(outside); s != nil && s.Inside == inside {
			return false, nil
		}
		if err := c.admit(outside, inside, netip.Prefix{}); err != nil {
			return false, err
		}
		c.logService(c.addService(outside, inside, vm, now), "added")
		return true, nil
	})
}

func (c *Controller) moveService(r *http.Request) (int, any, error) {
	var in ServiceRequest
	if err := body(r, &in); err != nil {
		return 0, nil, err
	}
	return c.steerService(r, func(outside netip.Prefix, now time.Time) (bool, error) {
		s := c.svc.live(outside)
		if s == nil {
			return false, noService(outside)
		}
		if in.Outside != "" {
			return false, fail(http.StatusBadRequest, "outside: the service address is in the path")
		}
		inside, vm, err := c.bind(outside, in)
		if err != nil {
			return false, err
		}
		if s.Inside == inside && s.VM == vm {
			return false, nil
		}
		if err := c.admit(outside, inside, outside); err != nil {
			return false, err
		}
		c.rebind(s, inside, vm, now)
		c.logService(s, "moved")
		return false, nil
	})
}

func (c *Controller) dropService(r *http.Request) (int, any, error) {
	outside, err := servicePath(r)
	if err != nil {
		return 0, nil, err
	}
	wait, err := waitOf(r, 0)
	if err != nil {
		return 0, nil, err
	}
	force := r.URL.Query().Get("force") == "true"
	_, err = c.change(r.Context(), func(now time.Time) (any, error) {
		switch s := c.svc.all[outside]; {
		case s == nil && force && len(c.env.servers) > 0:
			// Nobody here knows it, and a Map-Server may: it is told to forget it, under the version that it answers with.
			if vm, e := c.overlappingEID(outside); vm != "" {
				return nil, fail(http.StatusConflict, "%s is no service address: vm %s has the EID %s", ServiceName(outside), vm, e)
			}
			s = c.svc.add(Service{Outside: outside, Version: 1, Created: now, Changed: now, Deleted: true}, now)
			c.savedAs(s, "deleted")
			c.logService(s, "deleted, though it is not known here")
		case s == nil:
			return nil, noService(outside)
		case !s.Deleted:
			c.logService(s, "deleted")
			c.deleteService(s, now)
		}
		return nil, nil
	})
	if err != nil {
		return 0, nil, err
	}
	st, err := c.waitForService(r, outside, wait)
	var e *Error
	switch {
	case errors.As(err, &e) && e.Status == http.StatusNotFound, err == nil && st.State == ServiceDeleted:
		return http.StatusNoContent, nil, nil
	case err != nil:
		return 0, nil, err
	}
	return http.StatusAccepted, st, nil
}

// postServices adds many services: all, or those that can be added, or none.
func (c *Controller) postServices(r *http.Request) (int, any, error) {
	var in ServicesRequest
	if err := body(r, &in); err != nil {
		return 0, nil, err
	}
	do := c.change
	if in.DryRun {
		do = c.ask
	}
	v, err := do(r.Context(), func(now time.Time) (any, error) { return c.addServices(in, now), nil })
	return http.StatusOK, v, err
}

// addServices looks at every service of in before it adds the first.
func (c *Controller) addServices(in ServicesRequest, now time.Time) ServicesResult {
	out := ServicesResult{Results: make([]ServiceResult, len(in.Services))}
	type planned struct {
		outside, inside netip.Prefix
		vm              string
	}
	var plan []planned
	for i, one := range in.Services {
		res := &out.Results[i]
		*res = ServiceResult{Outside: one.Outside, Inside: one.Inside, VM: one.VM}
		p, exists, err := func() (p planned, exists bool, err error) {
			if p.outside, err = ParseServiceAddress(one.Outside); err != nil {
				return p, false, err
			}
			if exists, err = c.there(p.outside, one); exists {
				p.inside, p.vm = c.svc.live(p.outside).Inside, one.VM
			}
			if exists || err != nil {
				return p, exists, err
			}
			if p.inside, p.vm, err = c.bind(p.outside, one); err != nil {
				return p, false, err
			}
			if s := c.svc.live(p.outside); s != nil && s.Inside == p.inside {
				return p, true, nil
			}
			return p, false, c.admit(p.outside, p.inside, netip.Prefix{})
		}()
		if err != nil {
			res.Result, res.Error = ResultRefused, err.Error()
			out.Refused++
			continue
		}
		res.Outside, res.Inside, res.VM, res.Result = ServiceName(p.outside), ServiceName(p.inside), p.vm, ResultExists
		if exists {
			continue
		}
		// It is in the way of those that follow.
		c.svc.index.put(p.outside, p.inside)
		plan = append(plan, p)
		res.Result = ResultAdded
		out.Added++
	}
	if in.DryRun || out.Refused > 0 && !in.Partial {
		for _, p := range plan {
			c.svc.index.del(p.outside, p.inside)
		}
		return out
	}
	for _, p := range plan {
		c.addService(p.outside, p.inside, p.vm, now)
	}
	c.log.Info("services", "added", out.Added, "refused", out.Refused)
	out.Applied = true
	return out
}

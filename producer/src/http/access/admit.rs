//! What every request passes first.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};

use super::limit::{Kind, TooOften};
use super::role::needed;
use super::{Access, Caller, Denied, Gate, cross_site, form, is_own_path};
use crate::dashboard;
use crate::http::{Api, Problem, guard};

/// Who asks, for events. With tokens, what a client says of itself does not count.
const BY: HeaderName = HeaderName::from_static("stoker-by");

/// Lets a request in, or says why not.
pub async fn admit(State(api): State<Api>, request: Request, next: Next) -> Response {
    let mut response = match api.access() {
        Access::Open => match guard::local(&request) {
            Ok(()) => next.run(request).await,
            Err(problem) => problem.into_response(),
        },
        Access::Closed(gate) => {
            let asked = Asked::of(&request);
            match gate.enter(&api, request).await {
                Ok((request, Some(caller))) => caller.run(next.run(request)).await,
                Ok((request, None)) => next.run(request).await,
                Err(refused) => refused.answer(&asked),
            }
        }
    };
    guard::harden(response.headers_mut());
    response
}

/// The address a request comes from.
pub fn peer_of(extensions: &Extensions) -> IpAddr {
    let known = extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip());
    known.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

impl Gate {
    async fn enter(&self, api: &Api, mut request: Request) -> Result<(Request, Option<Caller>), Refused> {
        request.headers_mut().remove(BY);
        let peer = peer_of(request.extensions());
        let pattern = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        let Some(role) = needed(request.method(), pattern) else {
            self.limits.peer(Kind::Stranger, peer)?;
            return Ok((request, None));
        };
        let caller = match self.identify(request.headers(), peer, api.now()) {
            Ok(caller) => caller,
            Err(denied) => {
                self.limits.peer(Kind::Stranger, peer)?;
                return Err(Refused::Unknown(denied));
            }
        };
        let writes = !request.method().is_safe();
        self.limits.token(if writes { Kind::Write } else { Kind::Read }, &caller.name)?;
        if caller.csrf.is_some() {
            cross_site::refuse(request.headers(), writes)?;
        }
        if caller.role < role {
            return Err(Refused::Known(Problem::role(&caller.name, caller.role, role)));
        }
        if let (true, Some(csrf)) = (writes, &caller.csrf) {
            request = form::guarded(request, csrf).await?;
        }
        // Names are checked when they are read: this always is a header.
        if let Ok(by) = HeaderValue::from_str(&format!("token:{}", caller.name)) {
            request.headers_mut().insert(BY, by);
        }
        Ok((request, Some(caller)))
    }
}

/// What a refusal's form depends on.
struct Asked {
    method: Method,
    address: Uri,
    page: bool,
    link_from_elsewhere: bool,
}

impl Asked {
    fn of(request: &Request) -> Self {
        let headers: &HeaderMap = request.headers();
        Self {
            method: request.method().clone(),
            address: request.uri().clone(),
            page: dashboard::wants_page(headers),
            link_from_elsewhere: cross_site::is_link_from_elsewhere(headers),
        }
    }
}

/// Not let in.
enum Refused {
    /// Nobody knows who it is.
    Unknown(Denied),
    /// It may not.
    Known(Problem),
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self::Known(problem)
    }
}

impl From<TooOften> for Refused {
    fn from(TooOften(wait): TooOften) -> Self {
        Self::Known(Problem::too_often("requests, too many of them", wait))
    }
}

impl Refused {
    fn answer(self, asked: &Asked) -> Response {
        match self {
            Self::Unknown(Denied::Nobody) if asked.page => asked.log_in(),
            Self::Unknown(denied) => denied.problem().into_response(),
            Self::Known(problem) if asked.page => dashboard::bare_problem(&problem),
            Self::Known(problem) => problem.into_response(),
        }
    }
}

impl Asked {
    /// To the login page, and from there back to where one wanted to go.
    fn log_in(&self) -> Response {
        let wanted = self.address.path_and_query().map_or("/", |wanted| wanted.as_str());
        let next = if self.method == Method::GET && is_own_path(wanted) { wanted } else { "/" };
        let query = form_urlencoded::Serializer::new(String::new()).append_pair("next", next).finish();
        let login = format!("/login?{query}");
        if self.link_from_elsewhere {
            // The cookie may be there after all, only not with a request that another site caused.
            return dashboard::go_on_to(&login);
        }
        Redirect::to(&login).into_response()
    }
}
